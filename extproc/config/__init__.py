"""The operator's file: its shape, its errors and its compiled, frozen form."""
