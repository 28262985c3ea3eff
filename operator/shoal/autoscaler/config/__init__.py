"""The AutoscalerConfig: its types, its reader, its reload."""
