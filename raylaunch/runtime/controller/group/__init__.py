"""One group under supervision: its reservation, its loop, its journal, its evidence."""
