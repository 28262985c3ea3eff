"""The AutoscalerConfig: its types, its reader and its hot reload."""
