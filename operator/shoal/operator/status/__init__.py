"""What is reported of a job: conditions, reasons and events."""
