"""The guard: a gateway in front of a teacher, with accounts, limits that hold, a meter and an output policy."""
