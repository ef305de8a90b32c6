"""What a job would make and take, before a model loads: its plan, bytes, schedule, and models on devices."""
