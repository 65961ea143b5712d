"""The paper, as tensors. No session, thread, socket or clock in here."""
