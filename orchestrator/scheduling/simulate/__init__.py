"""What a trace of jobs would have done on a cluster: the scheduler that the controller runs, with a clock of its own."""
