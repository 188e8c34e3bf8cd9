"""What Headwater says of itself to people and programs: AsyncAPI, the READMEs as plain text, and pages to try both."""
