"""Counts to 40 with a checkpoint every ten steps; the first attempt dies at step 25.

The second attempt starts from the newest sealed checkpoint and says from which step.
"""

import json
import os
import sys
import time

STEPS, EVERY = 40, 10
attempt = int(os.environ["RACKWRIGHT_ATTEMPT"])
start = int(os.environ.get("RACKWRIGHT_RESUME_STEP") or 0)
total = 0
if start:
    with open(f"/work/checkpoints/{start}/state.json", encoding="utf-8") as f:
        total = json.load(f)["total"]
print(f"attempt {attempt} resumes from step {start}", flush=True)
for step in range(start + 1, STEPS + 1):
    total += step
    time.sleep(0.05)
    if step % EVERY == 0:
        folder = f"/work/checkpoints/{step}"
        os.makedirs(folder + ".part", exist_ok=True)
        with open(folder + ".part/state.json", "w", encoding="utf-8") as f:
            json.dump({"step": step, "total": total}, f)
        os.rename(folder + ".part", folder)
        open("/work/SEAL", "w").close()
    if attempt == 1 and step == 25:
        print("failing on purpose at step 25", flush=True)
        sys.exit(17)
assert total == STEPS * (STEPS + 1) // 2, total
print(f"attempt {attempt} finished with total {total}", flush=True)
