"""The language of a collection, found from samples of text."""

import pytest

from distill.config import Data
from distill.store.languages import language_of

SAMPLES = {
    "english": ["The committee has not yet decided which of the two plans it will follow.", "Water boils at 100 °C."],
    "german": ["Der Fluss entspringt in den Bergen und mündet nach 300 km in das Meer.", "Es ist nicht bekannt."],
    "french": ["Le conseil municipal a décidé que la place sera fermée aux voitures.", "Une ville est dans le sud."],
    "spanish": ["El río nace en las montañas y no desemboca en el mar.", "Los habitantes de la ciudad son pocos."],
    "italian": [
        "Il fiume nasce nelle montagne e non sfocia nel mare.",
        "La città è una delle più antiche che si conosca.",
    ],
    "dutch": ["De rivier ontspringt in het gebergte en mondt uit in de zee.", "Het is niet bekend wie er woont."],
    "portuguese": [
        "O rio nasce nas montanhas e não chega ao mar.",
        "Uma das cidades mais antigas do país foi fundada aqui.",
    ],
    "swedish": ["Floden rinner upp i bergen och mynnar ut i havet.", "Det är inte känt vem som har bott där."],
    "polish": ["Rzeka ma swoje źródło w górach i nie wpada do morza.", "Jest to jedno z najstarszych miast."],
    "finnish": ["Joki saa alkunsa vuorilta ja laskee mereen.", "Se on yksi vanhimmista kaupungeista, mutta ei suurin."],
    "turkish": ["Nehir dağlardan doğar ve denize dökülür.", "Bu bir şehir için çok eski bir tarih olarak bilinir."],
    "russian": ["Река берёт начало в горах и не впадает в море.", "Это один из самых старых городов на севере."],
    "arabic": ["ينبع النهر من الجبال ولا يصب في البحر على الساحل", "هذه المدينة هي من أقدم المدن في البلاد"],
    "hindi": ["नदी पहाड़ों में निकलती है और समुद्र में गिरती है", "यह देश के सबसे पुराने शहरों में से एक है"],
    "greek": ["Ο ποταμός πηγάζει από τα βουνά", "Η πόλη είναι παλιά"],
    "chinese": ["这条河发源于山区，流入大海。", "北京是中国的首都。"],
    "japanese": ["この川は山から海へ流れています。", "東京は日本の首都です。"],
    "thai": ["แม่น้ำไหลจากภูเขาลงสู่ทะเล", "กรุงเทพเป็นเมืองหลวงของประเทศไทย"],
    "korean": ["강은 산에서 시작해 바다로 흐른다", "서울은 대한민국의 수도이다"],
}


@pytest.mark.parametrize("language", SAMPLES)
def test_the_language_of_a_few_sentences_is_found(language):
    found = language_of(SAMPLES[language])
    assert found.name == language and "100% of" in found.reason


def test_a_clear_majority_decides_and_without_one_no_language_does():
    english, german = SAMPLES["english"][:1], SAMPLES["german"][:1]
    assert language_of(english * 8 + german * 2).name == "english"
    mixed = language_of(english * 5 + german * 5)
    assert mixed.name == "none" and "50% of 10 sampled passages are English, 50% German" in mixed.reason


def test_texts_without_function_words_and_languages_without_a_stemmer_have_none():
    assert language_of(["A7-334 / B9", "xkcd qwerty"]).name == language_of([]).name == "none"
    ukrainian = language_of(["Ріка бере початок у горах і не впадає в море, але це не відомо."])
    assert ukrainian.name == "none" and "Ukrainian, for which there is no stemmer" in ukrainian.reason


@pytest.mark.parametrize(
    ("written", "name"), [("de", "german"), ("German", "german"), ("pt-BR", "portuguese"), (False, "norwegian")]
)
def test_a_recipe_names_a_language_or_its_code(written, name):
    source = {"kind": "python-docs"}
    assert Data(source=source, language=written).language == name
    assert Data(source=source).language == "auto" and Data(source=source, language="none").language == "none"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("germann", "did you mean 'german'"),
        ("xx", "valid: none, ar, bo"),
        ("klingon", "no stemmer for the language 'klingon'"),
    ],
)
def test_an_unknown_language_is_refused_in_words(written, told):
    with pytest.raises(ValueError, match=told):
        Data(source={"kind": "python-docs"}, language=written)
