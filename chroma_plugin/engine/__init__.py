"""Time: who runs in this step, on which rows."""
