"""The pipelines that users upload or run on their laptop, and how they are compiled."""
