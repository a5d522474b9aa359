"""The site that shows what the `events` app does. It uses only what `events` exports."""
