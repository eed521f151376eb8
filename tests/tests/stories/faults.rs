//! What interrupts an apply: killed controllers and agents, reboots, full disks, wrong keys.
