"""What goes over a wire, and nothing else: messages, framing, links, transport."""
