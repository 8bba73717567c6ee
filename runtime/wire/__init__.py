"""The language that all processes speak: framing, messages, handshake, connection, and the asyncio shell around them."""
