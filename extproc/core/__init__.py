"""The pure decision core: events and a clock value in, decisions out; no sockets, asyncio or protobuf."""
