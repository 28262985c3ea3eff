"""How the processes of a job reach each other: frames, handshake, connections, shared memory."""
