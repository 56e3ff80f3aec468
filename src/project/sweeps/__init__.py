"""Many runs from one command: scheduler, record, launchers and sweepers."""
