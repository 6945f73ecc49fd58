"""Files on disks, in object stores and on what Beam knows besides."""
