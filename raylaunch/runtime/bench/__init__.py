"""Running a benchmark on the cluster and keeping its result."""
