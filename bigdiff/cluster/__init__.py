"""From a stage to running processes: rendezvous, the job, its submission and its log. submitit; no torch."""
