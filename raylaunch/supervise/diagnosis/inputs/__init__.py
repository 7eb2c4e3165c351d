"""What the diagnosis reads: large logs reduced, a site's signatures, CANN's own table. Pure."""
