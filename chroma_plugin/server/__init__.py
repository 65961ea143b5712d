"""Chroma for other processes, behind the OpenAI Realtime protocol and a few HTTP routes."""
