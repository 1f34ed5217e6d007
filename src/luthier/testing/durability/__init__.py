"""The durability harness: kills, stolen leases, full disks, and what must hold after them."""
