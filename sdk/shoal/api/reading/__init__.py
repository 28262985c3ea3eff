"""From texts and options to models: strict YAML, manifests, command-line options, and messages for what is wrong."""
