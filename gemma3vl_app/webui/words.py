"""What the page says, in the languages it speaks; English is what all others are measured by.

Errors, and what a model says of itself, stay English: they come from below the page.
"""

from __future__ import annotations

from typing import TypedDict


class Words(TypedDict):
    """All that stands on buttons and beside fields."""

    conversation: str
    conversations: str
    user: str
    assistant: str
    placeholder: str
    welcome: str
    send: str
    stop: str
    cancel: str
    copy: str
    edit: str
    again: str
    undo: str
    versions: str
    earlier: str
    later: str
    new: str
    search: str
    nothing_found: str
    rename: str
    pin: str
    unpin: str
    delete: str
    really_delete: str
    export: str
    bring_in: str
    settings: str
    system: str
    temperature: str
    top_k: str
    top_p: str
    seed: str
    answer_tokens: str
    crops: str
    confidence: str
    pictures: str
    remove: str
    move_left: str
    move_right: str
    webcam: str
    tokens: str
    context: str
    squashed: str
    chat: str
    models: str
    compare: str
    unload: str
    go_on: str
    attach: str
    take: str
    close: str
    no_camera: str
    not_taken: str
    more: str
    presets: str
    preset_short: str
    preset_detailed: str
    preset_read: str
    preset_compare: str
    preset_json: str
    schema: str
    crops_off: str
    crops_on: str
    crops_auto: str
    precision: str
    use: str
    in_use: str
    loaded: str
    fits: str
    does_not_fit: str
    memory: str
    why: str
    other_source: str
    part_weights: str
    part_kv_global: str
    part_kv_sliding: str
    part_vision: str
    part_logits: str
    part_reserve: str
    model: str
    question: str
    adapter: str
    add_adapter: str
    add: str
    no_adapter: str
    preset_question: str
    preset_general: str


ENGLISH = Words(
    conversation="Conversation",
    conversations="Conversations",
    user="You",
    assistant="Model",
    placeholder="Ask something; pictures can be pasted or dropped here, too",
    welcome="Try one of these, or ask about pictures of your own.",
    send="Send",
    stop="Stop",
    cancel="Cancel",
    copy="Copy",
    edit="Edit",
    again="Answer again",
    undo="Take back",
    versions="Versions",
    earlier="Earlier version",
    later="Later version",
    new="New conversation",
    search="Search",
    nothing_found="Nothing found.",
    rename="Rename",
    pin="Keep at the top",
    unpin="No longer at the top",
    delete="Delete",
    really_delete="Delete this conversation and its pictures?",
    export="Export",
    bring_in="Import",
    settings="Settings",
    system="System prompt",
    temperature="Temperature",
    top_k="Top k",
    top_p="Top p",
    seed="Seed",
    answer_tokens="Longest answer, in tokens",
    crops="Look at parts of large pictures, too",
    confidence="Show how sure the model was",
    pictures="Pictures",
    remove="Remove",
    move_left="Move left",
    move_right="Move right",
    webcam="Camera",
    tokens="tokens",
    context="Context",
    squashed="will be squashed to a square",
    chat="Chat",
    models="Models",
    compare="Compare",
    unload="Unload",
    go_on="Go on",
    attach="Add pictures or PDFs",
    take="Take picture",
    close="Close",
    no_camera="The camera cannot be used. Allow it in the browser, or choose a file.",
    not_taken="could not be sent; is it larger than 25 MB?",
    more="More",
    presets="Ready-made questions",
    preset_short="Caption, short",
    preset_detailed="Caption, detailed",
    preset_read="Read the text",
    preset_compare="Compare the pictures",
    preset_json="Take out the data as JSON",
    schema="Answer as JSON of this schema",
    crops_off="No crops",
    crops_on="Crops",
    crops_auto="Crops if useful",
    precision="Precision",
    use="Use",
    in_use="in use",
    loaded="loaded",
    fits="fits here",
    does_not_fit="does not fit here",
    memory="Memory",
    why="Why",
    other_source="Another model: hub id, folder or GGUF file",
    part_weights="weights",
    part_kv_global="context, whole",
    part_kv_sliding="context, window",
    part_vision="pictures",
    part_logits="logits",
    part_reserve="reserve",
    model="Model",
    question="Question",
    adapter="Adapter",
    add_adapter="Add an adapter: its folder, or NAME=FOLDER",
    add="Add",
    no_adapter="none: the model itself",
    preset_question="Question, short answer",
    preset_general="General conversation",
)

GERMAN = Words(
    conversation="Gespräch",
    conversations="Gespräche",
    user="Sie",
    assistant="Modell",
    placeholder="Stellen Sie eine Frage; auch Bilder lassen sich hier einfügen oder ablegen",
    welcome="Probieren Sie eines davon, oder fragen Sie nach eigenen Bildern.",
    send="Senden",
    stop="Anhalten",
    cancel="Abbrechen",
    copy="Kopieren",
    edit="Ändern",
    again="Noch einmal antworten",
    undo="Zurücknehmen",
    versions="Fassungen",
    earlier="Frühere Fassung",
    later="Spätere Fassung",
    new="Neues Gespräch",
    search="Suchen",
    nothing_found="Nichts gefunden.",
    rename="Umbenennen",
    pin="Oben halten",
    unpin="Nicht mehr oben halten",
    delete="Löschen",
    really_delete="Dieses Gespräch und seine Bilder löschen?",
    export="Ausgeben",
    bring_in="Einlesen",
    settings="Einstellungen",
    system="Systemtext",
    temperature="Temperatur",
    top_k="Top k",
    top_p="Top p",
    seed="Startzahl",
    answer_tokens="Längste Antwort, in Token",
    crops="Auch Ausschnitte großer Bilder ansehen",
    confidence="Zeigen, wie sicher das Modell war",
    pictures="Bilder",
    remove="Entfernen",
    move_left="Nach links",
    move_right="Nach rechts",
    webcam="Kamera",
    tokens="Token",
    context="Kontext",
    squashed="wird zum Quadrat gestaucht",
    chat="Gespräch",
    models="Modelle",
    compare="Vergleichen",
    unload="Entladen",
    go_on="Weiter",
    attach="Bilder oder PDFs hinzufügen",
    take="Aufnehmen",
    close="Schließen",
    no_camera=(
        "Die Kamera ist nicht verfügbar. Erlauben Sie sie im Browser, oder wählen Sie eine Datei."
    ),
    not_taken="konnte nicht gesendet werden; ist es größer als 25 MB?",
    more="Mehr",
    presets="Fertige Fragen",
    preset_short="Bildunterschrift, kurz",
    preset_detailed="Bildunterschrift, ausführlich",
    preset_read="Text lesen",
    preset_compare="Bilder vergleichen",
    preset_json="Daten als JSON herausziehen",
    schema="Als JSON nach diesem Schema antworten",
    crops_off="Keine Ausschnitte",
    crops_on="Ausschnitte",
    crops_auto="Ausschnitte bei Bedarf",
    precision="Genauigkeit",
    use="Benutzen",
    in_use="in Benutzung",
    loaded="geladen",
    fits="passt hierher",
    does_not_fit="passt nicht hierher",
    memory="Speicher",
    why="Warum",
    other_source="Anderes Modell: Hub-Name, Ordner oder GGUF-Datei",
    part_weights="Gewichte",
    part_kv_global="Kontext, ganz",
    part_kv_sliding="Kontext, Fenster",
    part_vision="Bilder",
    part_logits="Logits",
    part_reserve="Reserve",
    model="Modell",
    question="Frage",
    adapter="Adapter",
    add_adapter="Adapter hinzufügen: sein Ordner, oder NAME=ORDNER",
    add="Hinzufügen",
    no_adapter="keiner: das Modell selbst",
    preset_question="Frage, kurze Antwort",
    preset_general="Freies Gespräch",
)

FRENCH = Words(
    conversation="Conversation",
    conversations="Conversations",
    user="Vous",
    assistant="Modèle",
    placeholder="Posez une question ; des images peuvent aussi être collées ou déposées ici",
    welcome="Essayez l'un de ces exemples, ou interrogez vos propres images.",
    send="Envoyer",
    stop="Arrêter",
    cancel="Annuler",
    copy="Copier",
    edit="Modifier",
    again="Répondre à nouveau",
    undo="Reprendre",
    versions="Versions",
    earlier="Version précédente",
    later="Version suivante",
    new="Nouvelle conversation",
    search="Rechercher",
    nothing_found="Rien trouvé.",
    rename="Renommer",
    pin="Garder en haut",
    unpin="Ne plus garder en haut",
    delete="Supprimer",
    really_delete="Supprimer cette conversation et ses images ?",
    export="Exporter",
    bring_in="Importer",
    settings="Réglages",
    system="Consigne",
    temperature="Température",
    top_k="Top k",
    top_p="Top p",
    seed="Graine",
    answer_tokens="Réponse la plus longue, en jetons",
    crops="Regarder aussi des parties des grandes images",
    confidence="Montrer la certitude du modèle",
    pictures="Images",
    remove="Retirer",
    move_left="Vers la gauche",
    move_right="Vers la droite",
    webcam="Caméra",
    tokens="jetons",
    context="Contexte",
    squashed="sera comprimée en carré",
    chat="Conversation",
    models="Modèles",
    compare="Comparer",
    unload="Décharger",
    go_on="Continuer",
    attach="Ajouter des images ou des PDF",
    take="Prendre la photo",
    close="Fermer",
    no_camera=(
        "L’appareil photo n’est pas disponible. Autorisez-le "
        "dans le navigateur ou choisissez un fichier."
    ),
    not_taken="n’a pas pu être envoyé ; dépasse-t-il 25 Mo ?",
    more="Plus",
    presets="Questions toutes prêtes",
    preset_short="Légende courte",
    preset_detailed="Légende détaillée",
    preset_read="Lire le texte",
    preset_compare="Comparer les images",
    preset_json="Extraire les données en JSON",
    schema="Répondre en JSON selon ce schéma",
    crops_off="Sans recadrages",
    crops_on="Recadrages",
    crops_auto="Recadrages si utile",
    precision="Précision",
    use="Utiliser",
    in_use="utilisé",
    loaded="chargé",
    fits="tient ici",
    does_not_fit="ne tient pas ici",
    memory="Mémoire",
    why="Pourquoi",
    other_source="Autre modèle : identifiant du hub, dossier ou fichier GGUF",
    part_weights="poids",
    part_kv_global="contexte, entier",
    part_kv_sliding="contexte, fenêtre",
    part_vision="images",
    part_logits="logits",
    part_reserve="réserve",
    model="Modèle",
    question="Question",
    adapter="Adaptateur",
    add_adapter="Ajouter un adaptateur : son dossier, ou NOM=DOSSIER",
    add="Ajouter",
    no_adapter="aucun : le modèle seul",
    preset_question="Question, réponse courte",
    preset_general="Conversation libre",
)

SPANISH = Words(
    conversation="Conversación",
    conversations="Conversaciones",
    user="Usted",
    assistant="Modelo",
    placeholder="Pregunte algo; también puede pegar o soltar imágenes aquí",
    welcome="Pruebe uno de estos ejemplos, o pregunte por sus propias imágenes.",
    send="Enviar",
    stop="Detener",
    cancel="Cancelar",
    copy="Copiar",
    edit="Editar",
    again="Responder otra vez",
    undo="Deshacer",
    versions="Versiones",
    earlier="Versión anterior",
    later="Versión siguiente",
    new="Nueva conversación",
    search="Buscar",
    nothing_found="No se encontró nada.",
    rename="Renombrar",
    pin="Mantener arriba",
    unpin="Dejar de mantener arriba",
    delete="Eliminar",
    really_delete="¿Eliminar esta conversación y sus imágenes?",
    export="Exportar",
    bring_in="Importar",
    settings="Ajustes",
    system="Instrucción del sistema",
    temperature="Temperatura",
    top_k="Top k",
    top_p="Top p",
    seed="Semilla",
    answer_tokens="Respuesta más larga, en tokens",
    crops="Mirar también partes de imágenes grandes",
    confidence="Mostrar la seguridad del modelo",
    pictures="Imágenes",
    remove="Quitar",
    move_left="Mover a la izquierda",
    move_right="Mover a la derecha",
    webcam="Cámara",
    tokens="tokens",
    context="Contexto",
    squashed="se comprimirá a un cuadrado",
    chat="Conversación",
    models="Modelos",
    compare="Comparar",
    unload="Descargar",
    go_on="Continuar",
    attach="Añadir imágenes o PDF",
    take="Hacer la foto",
    close="Cerrar",
    no_camera="No se puede usar la cámara. Permítala en el navegador o elija un archivo.",
    not_taken="no se pudo enviar; ¿supera los 25 MB?",
    more="Más",
    presets="Preguntas preparadas",
    preset_short="Descripción breve",
    preset_detailed="Descripción detallada",
    preset_read="Leer el texto",
    preset_compare="Comparar las imágenes",
    preset_json="Extraer los datos como JSON",
    schema="Responder en JSON según este esquema",
    crops_off="Sin recortes",
    crops_on="Recortes",
    crops_auto="Recortes si conviene",
    precision="Precisión",
    use="Usar",
    in_use="en uso",
    loaded="cargado",
    fits="cabe aquí",
    does_not_fit="no cabe aquí",
    memory="Memoria",
    why="Por qué",
    other_source="Otro modelo: nombre del hub, carpeta o archivo GGUF",
    part_weights="pesos",
    part_kv_global="contexto, entero",
    part_kv_sliding="contexto, ventana",
    part_vision="imágenes",
    part_logits="logits",
    part_reserve="reserva",
    model="Modelo",
    question="Pregunta",
    adapter="Adaptador",
    add_adapter="Añadir un adaptador: su carpeta, o NOMBRE=CARPETA",
    add="Añadir",
    no_adapter="ninguno: solo el modelo",
    preset_question="Pregunta, respuesta corta",
    preset_general="Conversación libre",
)

CHINESE = Words(
    conversation="对话",
    conversations="对话列表",
    user="您",
    assistant="模型",
    placeholder="请输入问题；也可在此粘贴或拖放图片",
    welcome="试试下面的例子，或者询问您自己的图片。",
    send="发送",
    stop="停止",
    cancel="取消",
    copy="复制",
    edit="编辑",
    again="重新回答",
    undo="撤回",
    versions="版本",
    earlier="上一版本",
    later="下一版本",
    new="新对话",
    search="搜索",
    nothing_found="没有找到。",
    rename="重命名",
    pin="置顶",
    unpin="取消置顶",
    delete="删除",
    really_delete="要删除此对话及其图片吗？",
    export="导出",
    bring_in="导入",
    settings="设置",
    system="系统提示",
    temperature="温度",
    top_k="Top k",
    top_p="Top p",
    seed="随机种子",
    answer_tokens="回答的最大词元数",
    crops="同时查看大图的局部",
    confidence="显示模型的把握程度",
    pictures="图片",
    remove="移除",
    move_left="左移",
    move_right="右移",
    webcam="摄像头",
    tokens="词元",
    context="上下文",
    squashed="将被压缩成正方形",
    chat="对话",
    models="模型",
    compare="比较",
    unload="卸载",
    go_on="继续",
    attach="添加图片或 PDF",
    take="拍照",
    close="关闭",
    no_camera="无法使用摄像头。请在浏览器中允许，或选择文件。",
    not_taken="无法发送；是否超过 25 MB？",
    more="更多",
    presets="现成的问题",
    preset_short="简短描述",
    preset_detailed="详细描述",
    preset_read="读取文字",
    preset_compare="比较图片",
    preset_json="提取为 JSON",
    schema="按此模式以 JSON 回答",
    crops_off="不裁剪",
    crops_on="裁剪",
    crops_auto="按需裁剪",
    precision="精度",
    use="使用",
    in_use="使用中",
    loaded="已载入",
    fits="可在此运行",
    does_not_fit="无法在此运行",
    memory="内存",
    why="原因",
    other_source="其他模型：Hub 名称、文件夹或 GGUF 文件",
    part_weights="权重",
    part_kv_global="上下文（全局）",
    part_kv_sliding="上下文（窗口）",
    part_vision="图片",
    part_logits="逻辑值",
    part_reserve="预留",
    model="模型",
    question="问题",
    adapter="适配器",
    add_adapter="添加适配器：文件夹，或 名称=文件夹",
    add="添加",
    no_adapter="无：模型本身",
    preset_question="提问，简短回答",
    preset_general="自由对话",
)

JAPANESE = Words(
    conversation="会話",
    conversations="会話一覧",
    user="あなた",
    assistant="モデル",
    placeholder="質問を入力してください。画像も貼り付けたりドラッグしたりできます",
    welcome="例を試すか、ご自分の画像について質問してください。",
    send="送信",
    stop="停止",
    cancel="キャンセル",
    copy="コピー",
    edit="編集",
    again="もう一度答える",
    undo="取り消す",
    versions="バージョン",
    earlier="前のバージョン",
    later="次のバージョン",
    new="新しい会話",
    search="検索",
    nothing_found="見つかりませんでした。",
    rename="名前を変更",
    pin="先頭に固定",
    unpin="固定を解除",
    delete="削除",
    really_delete="この会話と画像を削除しますか？",
    export="書き出し",
    bring_in="読み込み",
    settings="設定",
    system="システムプロンプト",
    temperature="温度",
    top_k="Top k",
    top_p="Top p",
    seed="シード",
    answer_tokens="回答の最大トークン数",
    crops="大きな画像は部分も見る",
    confidence="モデルの確信度を表示",
    pictures="画像",
    remove="外す",
    move_left="左へ",
    move_right="右へ",
    webcam="カメラ",
    tokens="トークン",
    context="コンテキスト",
    squashed="正方形に縮められます",
    chat="会話",
    models="モデル",
    compare="比較",
    unload="解放",
    go_on="続ける",
    attach="画像または PDF を追加",
    take="撮影する",
    close="閉じる",
    no_camera="カメラを使えません。ブラウザーで許可するか、ファイルを選んでください。",
    not_taken="送信できませんでした。25 MB を超えていませんか？",
    more="その他",
    presets="定型の質問",
    preset_short="短い説明",
    preset_detailed="詳しい説明",
    preset_read="文字を読む",
    preset_compare="画像を比べる",
    preset_json="データを JSON で取り出す",
    schema="このスキーマの JSON で答える",
    crops_off="切り出しなし",
    crops_on="切り出しあり",
    crops_auto="必要なら切り出す",
    precision="精度",
    use="使う",
    in_use="使用中",
    loaded="読み込み済み",
    fits="ここで動きます",
    does_not_fit="ここでは動きません",
    memory="メモリ",
    why="理由",
    other_source="ほかのモデル：Hub の名前、フォルダー、GGUF ファイル",
    part_weights="重み",
    part_kv_global="文脈（全体）",
    part_kv_sliding="文脈（窓）",
    part_vision="画像",
    part_logits="ロジット",
    part_reserve="予備",
    model="モデル",
    question="質問",
    adapter="アダプター",
    add_adapter="アダプターを追加：フォルダー、または 名前=フォルダー",
    add="追加",
    no_adapter="なし：モデルそのもの",
    preset_question="質問、短い答え",
    preset_general="自由な会話",
)

LANGUAGES: dict[str, Words] = {
    "en": ENGLISH,
    "de": GERMAN,
    "fr": FRENCH,
    "es": SPANISH,
    "zh-CN": CHINESE,
    "ja": JAPANESE,
}


def texts_of(words: Words) -> dict[str, str]:
    """Return words as a plain mapping."""
    return {key: str(text) for key, text in words.items()}


def words_for(accepted: str) -> Words:
    """Return the words of the language that a browser likes best, of those that there are.

    `accepted` is its Accept-Language header: "de-AT,de;q=0.9,en;q=0.8".
    """
    ranked = []
    for part in accepted.split(","):
        name, _, weight = part.partition(";q=")
        try:
            ranked.append((float(weight or 1), name.strip().lower()))
        except ValueError:
            continue
    known = {name.split("-")[0]: words for name, words in LANGUAGES.items()}
    for _, name in sorted(ranked, key=lambda each: -each[0]):
        if name.split("-")[0] in known:
            return known[name.split("-")[0]]
    return ENGLISH
