"""Connections between the processes of a job: addresses, frames, handshake, shared memory."""
