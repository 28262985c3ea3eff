"""Commands beside jobs: checks, templates, completion, and a container's first process."""
