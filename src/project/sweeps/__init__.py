"""Many runs from one command: the queue, its record, and where the jobs run."""
