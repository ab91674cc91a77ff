"""I/O around the auction machines: the tenders this machine owns, the bids it makes, the capacity it holds."""
