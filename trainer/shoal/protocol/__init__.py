"""What the processes of a job exchange, and what follows from it alone: messages, tasks, slots. No I/O, no torch."""
