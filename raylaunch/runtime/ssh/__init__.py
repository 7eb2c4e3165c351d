"""`--cluster`: runs this raylaunch on the head of another cluster, over SSH."""
