from steerlib.tables import PROGRESS_FILE, progress_bar


def test_a_bar_in_batch_writes_its_count_and_the_time_left_to_the_file(tmp_path, monkeypatch):
    file = tmp_path / "03.progress"
    monkeypatch.setenv(PROGRESS_FILE, str(file))
    with progress_bar(10, what="sweep", unit="answer", done=4) as bar:
        bar.update(6)
    last = file.read_text().split("\r")[-1]
    assert "sweep: 100%" in last and "10/10" in last


def test_without_the_runner_the_bar_goes_where_bars_go(monkeypatch, capsys):
    monkeypatch.delenv(PROGRESS_FILE, raising=False)
    with progress_bar(2, what="sweep", unit="answer") as bar:
        bar.update(2)
    assert "2/2" in capsys.readouterr().err
