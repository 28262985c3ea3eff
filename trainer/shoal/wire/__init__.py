"""What every process of a job speaks: frames, handshake, messages, shared memory."""
