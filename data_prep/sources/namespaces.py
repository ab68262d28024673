"""What the wikis call files, media and categories: names and aliases that the head of a dump does not all list."""

_NAMES = """
    file image media category
    datei bild medium kategorie
    fichier média catégorie
    archivo imagen medio categoría
    immagine categoria
    ficheiro arquivo imagem multimédia
    fitxer imatge imaxe
    bestand afbeelding categorie
    plik grafika kategoria
    fil bilde billede kategori
    tiedosto kuva luokka
    soubor súbor obrázok kategória
    fájl kép
    fișier fişier imagine
    dosya resim
    slika datoteka kategorija
    vaizdas attēls fails pilt kategooria
    fitxategi irudi
    skrá mynd flokkur
    dosiero kategorio
    fasciculus imago
    berkas gambar
    hình
    файл изображение зображення картинка выява категория категорія
    датотека слика категорија
    αρχείο εικόνα κατηγορία
    קובץ תמונה קטגוריה
    ملف صورة تصنيف پرونده تصویر رده
    चित्र फ़ाइल श्रेणी
    ไฟล์ ภาพ หมวดหมู่
    文件 档案 檔案 图像 圖像 图片 圖片 分类 分類
    ファイル 画像 カテゴリ
    파일 그림 분류
"""
FILES_AND_CATEGORIES = frozenset(_NAMES.split()) | {"tập tin", "hình ảnh", "thể loại"}
