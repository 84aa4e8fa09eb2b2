from experiments.config.words import counted


def test_a_number_fits_its_noun():
    assert [counted(n, "exam") for n in (0, 1, 2.0)] == ["0 exams", "1 exam", "2 exams"]
