"""What a run leaves behind on disk, and what is made from it: tables, boards, pictures, verification."""
