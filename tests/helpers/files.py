"""Ways in which a file of the cache is damaged, or is not what this user wrote."""

SPOILT = ("cut", "zeros at the end", "flipped", "empty", "no digest", "open to others", "a link", "of another")


def spoil(path, how, monkeypatch):
    """Spoils a library of the cache."""
    data = path.read_bytes()
    middle = len(data) // 2
    if how == "cut":
        path.write_bytes(data[:middle])
    elif how == "zeros at the end":
        path.write_bytes(data[:middle] + bytes(len(data) - middle))
    elif how == "flipped":
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no digest":
        path.with_suffix(".sha256").unlink()
    elif how == "open to others":
        path.chmod(0o666)
    elif how == "a link":
        other = path.with_name("other")
        path.rename(other)
        path.symlink_to(other)
    else:
        monkeypatch.setattr("os.geteuid", lambda: 12345)
