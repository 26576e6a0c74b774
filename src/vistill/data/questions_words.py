"""Words of English that the question rules know: closed classes, and what to call the same thing.

Open classes (which words are nouns, which verbs) are learned from the captions themselves, see
`vistill.data.questions_parse`. Lists here are of words that grammar fixes or that need a person's judgement:
who is a person, what is a place, which words name one thing.
"""

ARTICLES = frozenset("a an the this that these those his her their its my your our".split())
QUANTITIES = frozenset("some several many few all both each every multiple various numerous".split())
OTHER = frozenset("another other others".split())
NUMBERS = {
    word: number
    for number, word in enumerate(
        "one two three four five six seven eight nine ten eleven twelve".split(), start=1
    )
}
NUMBER_NAMES = {number: word for word, number in NUMBERS.items()}

COLOURS = frozenset(
    "black white red blue green yellow orange pink purple brown gray grey tan golden gold silver "
    "beige maroon".split()
)
COLOUR_NAMES = {"grey": "gray", "golden": "tan", "beige": "tan"}
# Colours that one person sees for another: of none of a group is it said that a thing has not got it.
NEAR_COLOURS = tuple(
    frozenset(group.split())
    for group in (
        "brown tan orange gold red maroon",
        "gray silver white black",
        "pink purple red maroon",
        "yellow gold tan orange",
        "blue gray purple green",
    )
)
# Words before a colour.
SHADES = frozenset("light dark bright pale deep hot neon lime navy".split())
# Words that say a thing has more than one colour, or a pattern.
PATTERNS = frozenset(
    "striped spotted plaid checkered multicolored multi-colored colorful tri-colored camouflage "
    "floral patterned polka tie-dyed rainbow print two-toned flowered multi-color colored spots".split()
)

PREPOSITIONS = frozenset(
    "in on at with by of from to into onto over under through across along near beside behind between "
    "around against above below inside outside up down off out past toward towards beneath underneath "
    "among amongst atop during after before for about alongside within without like amid amidst upon "
    "next-to in-front-of on-top-of out-of off-of close-to".split()
)
# Prepositions of several words are one token for the rules.
JOINED = {
    "in front of": "in-front-of",
    "on top of": "on-top-of",
    "next to": "next-to",
    "close to": "close-to",
    "out of": "out-of",
    "off of": "off-of",
    "inside of": "inside",
    "outside of": "outside",
    "in the middle of": "in",
    "on the edge of": "near",
    "at the edge of": "near",
    "on the side of": "near",
    "at the top of": "on-top-of",
    "up in the air": "midair",
    "in the air": "midair",
    "in mid air": "midair",
    "in mid-air": "midair",
    "each other": "themselves",
    "one another": "themselves",
    "ice cream": "ice-cream",
    "roller coaster": "roller-coaster",
    "hot dog": "hot-dog",
    "cell phone": "phone",
    "dirt bike": "motorcycle",
    "dirt biker": "motorcyclist",
    "dirtbike": "motorcycle",
    "motor bike": "motorcycle",
    "motor cycle": "motorcycle",
    "skate board": "skateboard",
    "snow board": "snowboard",
    "surf board": "surfboard",
    "rollar skates": "rollerskates",
    "inner tube": "tube",
    "trash can": "bin",
    "parking lot": "parking-lot",
    "hula hoop": "hula-hoop",
    "ice skating": "skating",
    "rock climber": "climber",
    "rock climbing": "climbing",
    "dressed up": "dressed",
    "close up": "closeup",
}
CONJUNCTIONS = frozenset(
    "and or but while whilst as who which that when where because nor so than & then".split()
)
CLAUSE_STARTS = frozenset("while whilst as when where because but".split())
BE = frozenset("is are was were be being been am 's".split())
AUXILIARIES = frozenset("has have had does do did can could will would may might gets get".split())
PRONOUNS = frozenset(
    "he she it they him them himself herself itself themselves someone something somebody anything "
    "nothing everyone everybody there here i you we me us what each-other hers theirs mine it's".split()
)
ADVERBS = frozenset(
    "very together outside outdoors indoors inside away ahead back forward backward backwards upside "
    "just not also still too about nearby alone apart almost quickly happily playfully closely slowly "
    "midair airborne overhead downhill uphill underwater upwards downwards sideways barefoot only now "
    "well fast hard high low ashore onstage downward upward even".split()
)
# Adjectives that stand where a noun might; most others are learned by what follows them.
ADJECTIVES = frozenset(
    "young old older little small big large long short tall wet dirty muddy snowy grassy sandy rocky "
    "wooden shirtless blond blonde bald asian african american indian chinese japanese elderly happy "
    "smiling male female adult open empty dry deep shallow busy crowded public colorful different "
    "same other own full upside high low bright dark light hot cold warm sunny cloudy young-looking "
    "lone single huge tiny giant fluffy furry shaggy plastic metal stone brick concrete leather "
    "stuffed inflatable toy indoor outdoor german golden dressed covered fenced paved wooded lush "
    "leafless bare naked topless hooded teenage teenaged middle-aged athletic pretty beautiful cute "
    "funny silly red-headed redheaded blue-eyed".split()
)
# Words in -ing that name a thing.
THINGS_IN_ING = frozenset(
    "building buildings clothing railing ring string wing king spring ceiling evening morning wedding "
    "during something anything nothing everything thing lightning awning earring sling sibling "
    "offspring viking sterling bling swing painting sing bring cling being outing setting opening "
    "gathering cunning stocking siding bedding frosting icing duckling ping tubing scaffolding".split()
)

# A quantity of something: "a group of people" is about the people.
OF_WORDS = frozenset(
    "group bunch couple pair lot lots number crowd team pack flock herd row line set type kind piece "
    "pile body series variety array gang trio handful stack bit sheet slice family class collection "
    "load patch".split()
)
# Heads that are no thing to ask about.
VAGUE = frozenset(
    "front side top background foreground middle edge end back way air day time picture photo "
    "photograph image camera view scene shot closeup look lot group bunch couple pair number crowd "
    "team area place spot part piece set type kind thing something object item event distance "
    "direction left right center rest action position half other one another midair corner bottom "
    "mouth hand arm leg foot head face eye ear body hair tongue tooth nose finger knee shoulder neck "
    "lap paw tail fur skin chest stomach cheek lip night smile gear equipment clothes clothing outfit "
    "attire uniform style trick jump turn ride walk fun shade motion pose expression sunset weather "
    "wind speed case stuff life game race play competition match show act routine surface ground land "
    "space spectator all others color colour design midst surrounding silhouette reflection shadow "
    "pattern name word letter sort form move balance hold break control lead dark light dusk sun "
    "fight stunt flip catch tackle training practice wheelie same two three being inside outside "
    "opponent attempt nap bite kiss bath peace sign post display person animal drink food toy "
    "structure fetch wave trail midday".split()
)

MAN = frozenset("man guy gentleman fellow male policeman cowboy groom father dad grandfather".split())
WOMAN = frozenset("woman lady female bride mother mom grandmother".split())
BOY = frozenset("boy".split())
GIRL = frozenset("girl".split())
CHILD = frozenset("child kid toddler baby infant youngster".split())
PEOPLE = (
    MAN
    | WOMAN
    | BOY
    | GIRL
    | CHILD
    | frozenset(
        "person people adult teen teenager youth player rider skier snowboarder skateboarder biker "
        "bicyclist cyclist climber hiker surfer swimmer runner racer dancer singer musician performer "
        "worker officer soldier cheerleader athlete wrestler boxer fighter goalie catcher pitcher batter "
        "quarterback referee coach driver passenger photographer artist painter vendor customer spectator "
        "onlooker bystander audience fan friend couple family brother sister son daughter parent student "
        "teacher tourist pedestrian clown skater rollerblader motorcyclist kayaker canoer boater rower "
        "fisherman diver jogger walker golfer jockey wakeboarder parasailer gymnast acrobat juggler cook "
        "chef waiter waitress businessman fireman firefighter owner trainer opponent teammate member "
        "crowd group team model actor actress guitarist drummer violinist santa spiderman batman pirate "
        "ballerina snowmobiler skydiver camper cricketer footballer ballplayer twin sibling figure "
        "individual adventurer explorer tackler receiver defender competitor participant marcher police "
        "skiier paraglider unicyclist passerby traveler".split()
    )
)
# People a question may name, and what else they may be called.
ASKED_PEOPLE = {
    "man": MAN,
    "woman": WOMAN,
    "boy": BOY | CHILD,
    "girl": GIRL | CHILD,
    "child": CHILD | BOY | GIRL,
    "person": PEOPLE,
}
GENDERS = frozenset(["man", "woman", "boy", "girl"])
UNGENDERED = PEOPLE - MAN - WOMAN - BOY - GIRL - CHILD
# One word for several people: nobody knows how many.
COLLECTIVES = frozenset("crowd group team family couple audience youth police".split())
# Of more than one colour, or of one that goes without saying.
NO_COLOUR = frozenset("hair grass snow tree sky ski beard mohawk mountain cloud sunset band".split())
ANIMALS = frozenset(
    "dog puppy cat kitten horse cow bull sheep goat bird duck goose swan pigeon seagull elephant "
    "camel monkey bear fish animal greyhound poodle collie retriever terrier labrador lab shepherd "
    "bulldog dachshund husky pitbull beagle rottweiler dalmatian hound mutt pup pug chihuahua "
    "corgi spaniel pony donkey deer rabbit squirrel tiger lion turtle parrot eagle hawk owl crane "
    "heron flamingo chicken rooster llama pig doberman sheepdog whippet schnauzer lizard crab snake "
    "butterfly giraffe zebra".split()
)
DOGS = frozenset(
    "dog puppy greyhound poodle collie retriever terrier labrador lab shepherd bulldog dachshund "
    "husky pitbull beagle rottweiler dalmatian hound mutt pup pug chihuahua corgi spaniel doberman "
    "sheepdog whippet schnauzer canine doggy pointer".split()
)

# One name for one thing; a puppy is a dog in every question.
SAME = {
    **dict.fromkeys(DOGS, "dog"),
    **dict.fromkeys("bicycle cycle bmx".split(), "bike"),
    **dict.fromkeys("motorbike motorcross motocross moped".split(), "motorcycle"),
    **dict.fromkeys("guy gentleman fellow".split(), "man"),
    "lady": "woman",
    **dict.fromkeys("kid toddler youngster".split(), "child"),
    "infant": "baby",
    **dict.fromkeys("people individual adult someone".split(), "person"),
    **dict.fromkeys("automobile".split(), "car"),
    **dict.fromkeys("ocean sea".split(), "ocean"),
    **dict.fromkeys("shore seashore shoreline coast beachfront".split(), "beach"),
    **dict.fromkeys("woods wood forest".split(), "forest"),
    **dict.fromkeys("sofa couch loveseat".split(), "couch"),
    **dict.fromkeys("television tv".split(), "television"),
    **dict.fromkeys("mountainside mountaintop".split(), "mountain"),
    **dict.fromkeys("hillside".split(), "hill"),
    **dict.fromkeys("racquet racket".split(), "racket"),
    **dict.fromkeys("cellphone telephone mobile".split(), "phone"),
    "frisby": "frisbee",
    "tshirt": "shirt",
    "t-shirt": "shirt",
    "tee-shirt": "shirt",
    "tee": "shirt",
    "sunglass": "sunglasses",
    "glass": "glasses",
    "boulder": "rock",
    "pup": "dog",
    "footpath": "path",
    "pathway": "path",
    "trail": "path",
    "roadway": "road",
    "lawn": "grass",
    "sidewalk": "sidewalk",
    "pavement": "sidewalk",
    "cement": "concrete",
    "stair": "stairs",
    "staircase": "stairs",
    "stairway": "stairs",
    "goggle": "goggles",
    "short": "shorts",
    "jean": "jeans",
    "pant": "pants",
    "trouser": "pants",
    "creek": "river",
    "stream": "river",
    "newspaper": "newspaper",
    "skis": "ski",
    "snowbank": "snow",
    "backyard": "yard",
    "autumn": "fall",
    "cliff": "cliff",
    "swimsuit": "swimsuit",
    "raft": "raft",
    "racetrack": "track",
}
IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "leaves": "leaf",
    "knives": "knife",
    "puppies": "puppy",
    "babies": "baby",
    "ladies": "lady",
    "policemen": "policeman",
    "firemen": "fireman",
    "snowmen": "snowman",
    "calves": "calf",
    "loaves": "loaf",
    "scarves": "scarf",
    "shelves": "shelf",
    "gentlemen": "gentleman",
    "mice": "mouse",
    "oxen": "ox",
    "buses": "bus",
    "glasses": "glasses",
    "sunglasses": "sunglasses",
    "stairs": "stairs",
    "shorts": "shorts",
    "jeans": "jeans",
    "pants": "pants",
    "trousers": "trouser",
    "goggles": "goggles",
    "woods": "woods",
    "clothes": "clothes",
    "sheep": "sheep",
    "fish": "fish",
    "overalls": "overalls",
    "trunks": "trunks",
    "pajamas": "pajamas",
    "tights": "tights",
    "leggings": "leggings",
    "headphones": "headphones",
    "rapids": "rapids",
    "bleachers": "bleachers",
    "monkey bars": "bars",
}
# Plural in form, one thing: "what colour are the shorts?".
PLURAL_ONLY = frozenset(
    "glasses sunglasses shorts jeans pants goggles trunks overalls pajamas tights leggings stairs "
    "headphones rapids bleachers".split()
)
# The plural of the noun where adding -s is wrong.
PLURALS = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "goose": "geese",
    "sheep": "sheep",
    "baby": "babies",
    "puppy": "puppies",
    "fish": "fish",
    "bus": "buses",
}

# Where somebody or something can be, the answers of "where is the dog?", and how one is there.
PLACES = {
    **dict.fromkeys("beach park playground yard garden court track path field".split(), "open"),
    **dict.fromkeys(
        "street road sidewalk bridge alley parking-lot dirt snow sand grass mud ice".split(), "open"
    ),
    **dict.fromkeys(
        "mountain hill dune cliff dock pier deck porch patio balcony stage desert".split(), "open"
    ),
    **dict.fromkeys(
        "water pool lake ocean river pond puddle waterfall fountain bathtub rink".split(), "water"
    ),
    **dict.fromkeys(
        "forest jungle tent cave tunnel tree car bus train boat canoe kayak raft".split(), "closed"
    ),
    **dict.fromkeys(
        "kitchen restaurant bar subway gym store shop market stadium city town room".split(), "closed"
    ),
    **dict.fromkeys("hallway elevator wheelchair hammock library museum church".split(), "closed"),
    **dict.fromkeys(
        "couch bed bench chair swing trampoline rock slide stairs roof floor sled".split(), "seat"
    ),
    **dict.fromkeys("escalator roller-coaster carousel table log carpet rug".split(), "seat"),
}
PLACE_PREPOSITIONS = {
    "open": frozenset("in on at through across along inside into upon on-top-of atop down up onto".split()),
    "water": frozenset("in on at through across inside into".split()),
    "closed": frozenset("in on inside at through into".split()),
    "seat": frozenset("in on upon on-top-of atop down up onto".split()),
}
# Of a stone that flies "into the lake" nobody is in the lake.
THROWN = frozenset("into onto at".split())
# Whoever looks at a lake is not in it.
LOOKING = frozenset("looking staring watching gazing pointing overlooking facing viewing".split())
# Places of one group may be one place: neither contradicts the other.
PLACE_GROUPS = tuple(
    frozenset(group.split())
    for group in (
        "beach ocean sand water",
        "lake river pond pool puddle water fountain ocean waterfall canoe kayak raft boat",
        "field grass park yard hill garden dirt court",
        "street road sidewalk city track path parking-lot town dirt alley market",
        "snow mountain hill ice sled rink",
        "forest tree path",
        "rock cliff mountain",
        "dirt mud track path field sand road",
        "restaurant bar kitchen room store shop table chair couch bed floor",
        "playground swing slide park",
        "subway train",
    )
)

# Verbs that say nothing one can see, or nothing that somebody does.
NO_ACTIVITY = frozenset(
    "wearing having getting looking being doing making using taking trying showing attempting "
    "preparing starting beginning appearing seeming including featuring containing covering "
    "surrounding overlooking facing letting keeping participating competing receiving gathering "
    "resembling seeing saying displaying dressing attaching going coming leading giving putting "
    "turning setting performing enjoying practicing following holding hanging".split()
)
# Verbs that are a poor answer without what they are done to.
DULL_VERBS = frozenset(
    "flying carrying pulling pushing throwing catching hitting kicking chasing crossing approaching reaching "
    "raising lifting touching grabbing opening watching helping playing riding climbing eating "
    "drinking reading smoking biting bending blowing dribbling shooting swinging descending ascending "
    "driving sticking falling working fetching retrieving chewing petting pointing shaking licking "
    "sniffing feeding hugging kissing paddling pouring waving flipping waiting moving passing "
    "stopping leaving exiting entering returning landing picking heading traveling staring racing "
    "bringing rounding leaning lying-down making being walking-by running-by balancing".split()
)
# Verbs that mean something with their object: "playing soccer"; the two are one answer.
VERBS_WITH_OBJECT = frozenset(
    "playing riding climbing eating drinking reading smoking catching kicking throwing chasing "
    "carrying blowing hitting driving pulling pushing".split()
)
SAME_VERB = {"laying": "lying", "leaping": "jumping", "jogging": "running", "trotting": "running"}
# Games and music take no article: "playing soccer".
GAMES = frozenset(
    "soccer football basketball baseball hockey tennis volleyball rugby golf cricket softball tag "
    "music lacrosse badminton polo frisbee chess tug-of-war croquet paintball ping-pong".split()
)
# Neither does what comes without number: "drinking water".
MASS = frozenset("food beer coffee wine ice-cream cotton-candy snow corn pizza water dirt sand".split())
# What is done alone at one time: of one who sits, "is he running?" is no; but for the pairs in NOT_APART.
APART = frozenset("sitting standing lying running swimming walking jumping sleeping dancing skiing".split())
NOT_APART = (
    frozenset(["running", "jumping"]),
    frozenset(["walking", "standing"]),
    frozenset(["walking", "running"]),
    frozenset(["lying", "sleeping"]),
    frozenset(["dancing", "standing"]),
    frozenset(["dancing", "jumping"]),
    frozenset(["skiing", "jumping"]),
    frozenset(["skiing", "standing"]),
    frozenset(["swimming", "jumping"]),
    frozenset(["sitting", "lying"]),
)
# Scenery and clothes of which there may be more than a caption tells.
NOT_COUNTED = frozenset(
    "wall building fence ramp shirt hat jacket helmet dress suit coat vest wetsuit sweater cap scarf "
    "bag collar leash window flag costume bikini swimsuit hill mountain tree crowd sign road backpack "
    "uniform skirt mask obstacle hurdle ledge railing rail wave path wood pole house headband belt "
    "jersey sweatshirt apron tie harness necklace log".split()
)
# No questions about what is done to something: "what is the dog looking at?" has any answer.
NO_OBJECT = frozenset(
    "having being doing getting going trying attempting making taking including featuring containing "
    "covering surrounding showing appearing coming preparing starting using giving putting performing "
    "facing".split()
)
# "jumps a fence" is over it.
IMPLIED = {"jumping": "over", "clearing": "over"}
# Where the thing asked for stands: "what is the dog jumping over?".
ASKED_PREPOSITIONS = frozenset(
    ["", *"in on through over down up into across along under behind with against at off".split()]
)
# Prepositions that one caption takes for another: "runs in / through / across the field".
LIKE_IN = frozenset("in on through across into inside onto along".split())
ASKED_PREPOSITIONS |= frozenset("next-to in-front-of on-top-of onto out-of around".split())
