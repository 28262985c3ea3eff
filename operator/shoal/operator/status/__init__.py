"""Reports on jobs: conditions, reasons, events, and the writer of them."""
