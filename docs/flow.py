#!/usr/bin/env python3
"""Draws docs/flow.svg: the four flows, one lane each.   docs/flow.py > docs/flow.svg"""

from html import escape

LANES = [
    ("Rack", "#2f6f4f", ["inventory + playbooks", "facts, one trip a server", "plan with diffs, saved", "agents: check, apply, check", "five nodes Ready"]),
    ("Data", "#2a5d8f", ["ClickHouse, S3 / MinIO", "one export a version", "signed manifest", "chain from node to node", "hashed, read-only in pods"]),
    ("Jobs", "#8a4b14", ["HTTP submit", "store: durable, then reply", "our scheduler decides", "pods with nodeName set", "archived, then pruned"]),
    ("Money", "#6b3a86", ["dated prices", "usage of every attempt", "ledger: jobs, idle, system", "bill = invoice, to the cent", "and what cloud would cost"]),
]
W, H, GAP, LEFT, TOP, LANE = 176, 52, 26, 84, 20, 84


def main():
    width = LEFT + 5 * W + 4 * GAP + 16
    height = TOP + len(LANES) * LANE
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
    ]
    for lane, (name, color, boxes) in enumerate(LANES):
        y = TOP + lane * LANE
        out.append(f'<text x="16" y="{y + H / 2 + 5}" font-weight="bold" fill="{color}">{escape(name)}</text>')
        for i, text in enumerate(boxes):
            x = LEFT + i * (W + GAP)
            out.append(f'<rect x="{x}" y="{y}" width="{W}" height="{H}" rx="6" fill="{color}" fill-opacity="0.09" stroke="{color}"/>')
            out.append(f'<text x="{x + W / 2}" y="{y + H / 2 + 5}" text-anchor="middle" fill="#222">{escape(text)}</text>')
            if i:
                out.append(f'<path d="M{x - GAP + 3} {y + H / 2}H{x - 3}" stroke="#555" marker-end="url(#a)"/>')
    print("\n".join([*out, "</svg>"]))


if __name__ == "__main__":
    main()
