"""What keeps one caller's or one backend's trouble from being everybody's."""
