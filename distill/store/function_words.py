"""The most frequent function words of some languages, by which `distill.store.languages` tells them apart.

Languages without a stemmer are listed, too: their texts would otherwise pass for a neighbour's.
"""

from __future__ import annotations

_WORDS = {
    "arabic": "في من على إلى أن هذا هذه التي الذي عن مع كان ما لا هو هي ذلك كل بين قد",
    "basque": "eta da ez bat du dira ere zen baina beste hau izan dute edo bere zuen",
    "bulgarian": "на и да се в за от е не са че по как това с но ще си при до като към",
    "catalan": "de la i que el a en els les per amb un una és no del al va com més són aquest",
    "croatian": "je u i da se na za su ne od sa kao koji ali to bi će iz što bio prema kako",
    "czech": "a v se na je že z s to do o i ve pro jako jsou by za po od který ale jeho nebo byl",
    "danish": "og i at det er en til på som de med den af for ikke der var et har jeg fra blev efter også hvad mellem",
    "dutch": "de van het een en in is dat op te zijn met voor niet aan er die om ook als maar door bij wordt naar hij",
    "english": "the of and to a in is that for it was with by on are this have from or which you were not be at an how",
    "esperanto": "la de kaj en estas al por ne kiu mi li ĝi kun oni sed pri el ke ankaŭ",
    "estonian": "ja on ei et see oli ta kui ka mis oma või aga selle mida tema nii siis üks kes sest pole",
    "finnish": "ja on ei että se oli hän mutta myös ovat kun niin joka kuin sen tai mukaan olla voi ole sekä jonka",
    "french": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec aux",
    "german": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an wird bei",
    "hebrew": "של את על הוא לא זה עם היא גם כי אל או בין היה",
    "hindi": "के है में की से का को और पर हैं यह कि ने एक था नहीं भी",
    "hungarian": "a az és hogy nem is egy volt van meg de csak ez már mint azt még vagy el ki lehet majd",
    "indonesian": "yang dan di dengan untuk dari ini dalam itu pada tidak adalah ke oleh akan atau juga sebagai telah",
    "irish": "na agus ar is a i ag le go bhí sé tá leis do ní sin mar bheith chuig ó",
    "italian": "di e il la che in un a per è una sono con non del si da le i al della come più ma lo nel dei anche",
    "latvian": "un ir ar no par ka uz kas to viņš bija arī kā nav bet",
    "lithuanian": "ir yra kad į su tai ne iš bet kaip buvo jo per tik ar už jis apie dėl ant po",
    "marathi": "आहे आणि या च ते मध्ये हे व होते त्या किंवा आहेत",
    "nepali": "को र छ मा का लागि यो पनि भएको हो गर्न छन् थियो",
    "norwegian": "og i det er på til som en av for at med den de har ikke var et jeg fra ble etter også hva mellom",
    "persian": "و در به از که این است را با برای آن یک می شود خود تا شد بر هم بود های",
    "polish": "w i na z się do nie że jest to o jak za od po a przez ale dla tym co są oraz jego był",
    "portuguese": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das",
    "romanian": "de și în a la cu o nu pe care să un este din mai pentru că sunt lui fi ca prin au ale",
    "russian": "и в не на что с по это как но он к из у за от то все его для было была при или так же",
    "serbian": "је у и да се на за су не од са као који али то би ће из",
    "sesotho": "ho le ya ka e ba mme hore tsa ke o na wa se ha",
    "slovak": "a v sa na je že z s to do o aj vo pre ako sú by za po od ktorý ale jeho alebo bol",
    "slovene": "je in v na se da za so ki pa ne z s po tudi bi kot ali od",
    "spanish": "de la que el en y a los del se las por un para con no una su al es lo como más son fue este ha",
    "swedish": "och i att det som en på är av för med till den har de inte om ett han var jag sig från så kan när",
    "turkish": "bir ve bu için ile de da olarak olan daha çok gibi en kadar sonra ne olduğu var ise o",
    "ukrainian": "і в на не що з у та до як за це від про але для його й або був",
    "urdu": "کے میں کی ہے اور سے کا کو نے پر یہ کہ ایک ہیں",
    "vietnamese": "và của là có được trong cho các một không với người những",
    "yiddish": "און די איז פון דער צו אין מיט אויף וואס ער זיי נישט האט",
}
FUNCTION_WORDS = {language: frozenset(words.split()) for language, words in _WORDS.items()}
