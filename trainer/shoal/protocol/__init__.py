"""The protocol between the processes of a job: messages, task sets, the epoch plan, slot layout. No I/O, no torch."""
