"""What people look at, made from records alone: boards, paper tables, plots, pages."""
