"""What keeps a repository healthy: verify and recover. Works through the repository's public face only."""
