"""Files: written whole or not at all, locked while a process works in their folder, and read with care."""
