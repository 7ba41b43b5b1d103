"""Packets on disk: their files, a store of documents and its entries, signatures."""
