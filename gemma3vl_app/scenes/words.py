"""Words for prints: common English ones of three to nine letters, and made-up ones.

Some of the English ones are never trained on.
"""

from __future__ import annotations

import random

_ALL = """
able about above across act action actor add address adult advice after again age agree ahead air
airport alarm album alert alike alive all allow almost alone along aloud alphabet already also
always amazing among amount amuse anchor ancient angle animal ankle annual answer ant any anybody
anyone anything apart apple apricot april apron arch area arena argue arm around arrive arrow art
article artist ash ask asleep atlas attic august aunt author autumn avenue average avoid awake
award aware away awful axis baby back bacon badge bag bake baker bakery balance balcony ball
balloon bamboo banana band bank banner bar barber bargain bark barn barrel base basic basil basin
basket bat bath bathroom battery bay beach bead beak beam bean bear beard beat beautiful beauty
become bed bedroom bee beef beehive beetle before begin behave behind being believe bell belong
below belt bench bend beneath berry beside best better between beyond bicycle big bike bill bird
birth birthday biscuit bite bitter blackbird blanket blaze blend blind blink block blossom blouse
blow blueberry board boat body boil bold bolt bone bonus book bookcase bookshop boot border borrow
boss both bottle bottom bounce bow bowl box boy brain brake branch brand brass brave bread break
breakfast breath breathe breeze brick bridge brief bright brilliant bring broad broken bronze
brook broom brother brush bubble bucket bud budget buffalo bug build builder building bulb bumper
bunch bundle bunny burger burn burst bus bush business busy butter butterfly button buy buyer buzz
cab cabbage cabin cabinet cable cactus cafe cage cake calendar calf call calm camel camera camp
campfire can canal candle candy cane canoe canvas canyon cap capital captain caption car caravan
card cardboard care career careful cargo carnival carpet carriage carrot carry cart cartoon carve
case cash cashier castle cat catch cattle cause cave ceiling celery cell cement center central
century cereal certain chain chair chalk champion chance change channel chapter charge charity
charm chart chase chat cheap check cheek cheer cheerful cheese chef cherry chess chest chew
chicken chief child children chili chimney chin chocolate choice choir choose chop chorus cinema
cinnamon circus citizen city clap class classic classroom claw clay clean clear clerk clever click
client cliff climate climb clinic clip cloak clock close closet cloth clothes cloud cloudy clover
clown club clue coach coal coast coat cobweb coconut code coffee coin cold collar collect college
color comb combine come comedy comet comfort comic common company compare compass complete
computer concert cone connect contain content contest continue control cook cookie cool copper
copy coral cord core cork corn corner correct cost costume cottage cotton couch cough count
counter country couple courage course court cousin cover cow coyote cozy crab cradle craft crane
crate crayon cream create creature credit creek crew cricket crisp crop crowd crown cruise crumb
crust crystal cube cuckoo cucumber cup cupboard cupcake curb cure curious curl current curtain
curve cushion custard custom customer cut cute cycle daily dairy daisy damp dance dancer dare dark
data date daughter dawn day daylight deal dear debate decade december decide deck deep deer degree
delay delight deliver den denim dentist depend depth desert design desk dessert detail develop
device dial diamond diary dice dictate diet differ digit dim diner dinner dinosaur direct dirt
discover discuss dish distance ditch dive divide dock doctor dog dolphin dome donkey door doorbell
doorway dot double dough dove down downtown dozen draft dragon drama draw drawer drawing dream
dress drift drill drink drive driver drop drum dry duck due dune dusk dust duty each eager eagle
ear early earn earring earth easel east easy eat echo edge edit editor educate effect effort egg
eight either elbow elder elect elegant elephant elevator eleven else email empire empty end energy
engine engineer enjoy enough enter entire entrance entry envelope equal eraser error escape estate
even evening event ever every everyone evident exact exam example excellent except exchange excite
excuse exercise exhibit exit expand expect expert explain explore express extra eye eyebrow fabric
face fact factory fade fair fairy faith falcon fall family famous fan fancy far farm farmer
fashion fast father faucet favor favorite feast feather february feed feel fellow fence fern ferry
festival few fiber fiction field fifteen fifth fifty fig figure file film filter final find fine
finger finish fire firefly fireman fireplace firm first fish fisher fit five fix flag flake flame
flash flat flavor fleet flight flip float flood floor flour flow flower fluffy flute fly foam
focus fog fold folder folk follow food foot football footstep force forecast forest forever forget
fork form fortune forty forward fossil found fountain four fox frame free freedom freeze freezer
freight fresh friday fridge friend friendly frog front frost frozen fruit fry fuel full fun funny
fur furniture future gain galaxy gallery gallon game gap garage garden garlic gas gate gather gear
gem general gentle geography gesture get giant gift ginger giraffe girl give glad glass glide
globe glory glove glow glue goal goat gold golden golf good goose gorgeous gossip grab grace grade
grain grand grandma grandpa grant grape graph grass grateful gravel gravity great grid grill grip
grocery ground group grove grow growth guard guess guest guide guitar gull gum gym habit hail hair
haircut half hall hallway hammer hammock hamster hand handle handsome handy hang happen happy
harbor hard hardly hardware harvest hat hatch have hawk hay hazel head headline health healthy
hear heat heater heavy hedge heel height helmet help helper hen herb herd here hero heron hidden
hide high highway hike hill hint hip hire history hit hobby hockey hold hole holiday hollow home
homework honest honey honor hood hook hop hope horizon horn horse hose hospital host hot hotel
hour house household how huge human humble humor hundred hungry hunt hurry hut ice icicle icon
idea ideal igloo image imagine impact import improve inch include income increase indeed indoor
industry inform ink inn inner insect inside inspect install instead interest into invent invite
iris iron island item ivory ivy jacket jaguar jam january jar jasmine jaw jazz jeans jeep jelly
jet jewel jewelry job jog join joke jolly journal journey joy judge juggle juice juicy july jumbo
jump june jungle junior just kangaroo kayak keen keep kettle key keyboard kick kid kind king
kingdom kitchen kite kitten kiwi knee kneel knife knight knit knock knot know koala label labor
lace ladder lady ladybug lake lamb lamp land landscape lane language lantern lap laptop large lark
last late later laugh launch laundry lava lavender lawn lawyer layer lazy lead leader leaf league
lean leap learn leather leave lecture left leg legend leisure lemon lemonade lend length lens
leopard less lesson let letter lettuce level lever liberty library license lid life lift light
like lilac lily lime limit line linen lion lip liquid list listen little live lively lizard llama
load loaf loan lobby lobster local lock locker lodge log logic lonely long look loop loose lot
lotion loud lounge love lovely low loyal luck lucky luggage lullaby lumber lunch lung luxury
machine magazine magic magnet mail mailbox main major make mall mammal manage mango manner mansion
map maple marble march margin marine mark market marry mask mat match math matter maximum maybe
mayor maze meadow meal mean measure meat medal media medicine meet meeting melody melon melt
member memory mention menu merry message metal meteor meter method middle midnight might mild mile
milk mill million mind mine mineral minimum minor mint minute mirror mission mist mix mixture
mobile model modern modest moment monday money monster month mood moon moonlight moose mop more
morning mosaic moss moth mother motion motor mountain mouse mouth move movement movie mud muffin
mug multiply muscle museum mushroom music musical mustard myself mystery nail name nap napkin
narrow nation native natural nature navy near nearby nearly neat neck necklace need needle
neighbor nephew nest net network never new news newspaper next nice nickel niece night nine ninety
noble nobody noise noisy none noodle noon north nose note notebook nothing notice novel november
now number nurse nut nutmeg oak oar oasis oatmeal oats object observe ocean october octopus odd
offer office officer often oil old olive once one onion online only onto open opera opinion
opposite option orbit orchard orchestra orchid order ordinary organ origin ostrich other otter our
outdoor outfit outside oval oven over owl own owner oyster pack package packet pad paddle page
paint painter painting pair palace palm pan pancake panda panel pants papaya paper parade parcel
parent park parking parrot parsley part partner party pass passenger passport past pasta paste
pastry patch path patient pattern pause pavement paw pay payment pea peace peach peacock peak
peanut pear pearl pebble pedal peel pelican pen pencil penguin penny people pepper perfect perform
perfume perhaps period permit person pet petal phone photo phrase piano pick pickle picnic picture
pie piece pier pigeon pile pillow pilot pine pineapple pioneer pipe pitch pizza place plain plan
plane planet plank plant plastic plate platform play player plaza pleasant please pleasure plenty
plum plumber plural pocket poem poet poetry point polar pole police polish polite pond pony pool
popcorn poppy popular porch port portrait position possible post postcard poster pot potato
pottery pouch pound pour powder power practice prairie praise prefer prepare present press pretty
pretzel price pride prince princess print printer prize problem process produce product profit
program progress project promise proof proper protect proud prove provide public pudding puddle
pull pulse pump pumpkin pupil puppet puppy purchase pure purpose purse push puzzle pyramid quail
quality quantity quarter quartz queen question quick quiet quilt quit quite quiz quote rabbit
raccoon race racket radar radio radish raft rail railroad rain rainbow raincoat raise raisin rake
ramp ranch random range rapid rare raspberry rather raven ray reach read reader ready real reason
receipt receive recent recipe record recycle reduce reed reef reflect region regular relax release
remain remember remind remote remove rent repair repeat reply report rescue reserve resort respect
rest result return reveal review reward rhythm ribbon rice rich riddle ride rider ridge right ring
ripe rise river road roar roast robin robot rock rocket rodeo role roll roof room rooster root
rope rose rotate rough round route routine row royal rubber ruby rug rule ruler run runner rural
rush saddle safe safety sail sailor salad salary sale salmon salon salt salute same sample sand
sandal sandwich sandy sapphire satin saturday sauce saucer sausage save saw saxophone say scale
scarf scene scenery schedule scheme scholar school science scissors scoop scooter score scout
scrap screen script scroll sculpture sea seafood seal search season seat second secret section see
seed seek seem select sell send senior sense sentence september serve service session set settle
seven seventy several shadow shake shallow shampoo shape share shark sharp shed sheep sheet shelf
shell shelter shepherd sheriff shield shift shine shiny ship shirt shoe shop shopper shore short
shorts should shoulder shout shovel show shower shrimp shut shuttle shy side sidewalk sight sign
signal silence silent silk silver similar simple since sing singer single sink siren sister sit
site six sixteen sixty size skate sketch ski skill skin skirt sky skyline slab sled sleep sleepy
sleeve sleigh slice slide slip slipper slope slow small smart smell smile smoke smooth snack snail
snake sneaker snow snowball snowflake snowman soap soccer social sock soda sofa soft soil solar
soldier solid solution solve some somebody someone something sometimes son song soon sort soul
sound soup sour source south souvenir soy space spaceship spare spark sparkle sparrow speak
speaker special speech speed spell spend sphere spice spicy spider spin spinach spiral spirit
splash splendid sponge spoon sport spot spray spread spring sprout square squash squirrel stable
stack stadium staff stage stair stairs stamp stand standard star starfish start state station
statue stay steady steam steel steep stem step stereo stick sticker still stir stitch stock
stomach stone stool stop storage store stork storm story stove straight strange straw stream
street stretch string stripe stroll strong student studio study style subject submarine subway
success sudden sugar suggest suit suitcase sum summer summit sun sunday sunflower sunlight sunny
sunrise sunset sunshine super supper supply support supreme sure surf surface surprise swallow
swan sweater sweep sweet swift swim swimmer swing switch symbol symphony syrup system table tablet
taco tag tail tailor take tale talent talk tall tan tangerine tank tap tape target task taste
tasty taxi tea teach teacher team teapot teaspoon teeth telegram telephone telescope tell temple
ten tennis tent term terrace test text textile thank thankful theater theme then theory there
thermos thick thimble thin thing think third thirsty thirteen thirty this thousand thread three
thrive throat throne through throw thumb thunder thursday ticket tide tidy tie tiger tight tile
till timber time timetable tiny tip tire tired tissue title toast toaster today toe together
tomato tomorrow ton tone tongue tonight tool tooth top topic torch tornado tortoise toss total
touch tough tour tourist toward towel tower town toy track tractor trade traffic trail train
trainer transfer transport travel traveler tray treasure treat tree trend triangle trick tricycle
trip trolley trophy tropical trouble trousers trout truck true trumpet trunk trust truth try tube
tuesday tulip tuna tunnel turkey turn turnip turtle tuxedo twelve twenty twice twig twin twist two
type typical ugly umbrella uncle under unicorn uniform union unique unit unite universe until
upper upright upset upstairs upward urban urgent use useful user usual vacation vacuum valley
valuable value van vanilla vapor variety various vase vast vegetable vehicle velvet vendor verb
verse version very vessel vest victory video view village vine vinegar vintage violet violin
visible vision visit visitor vital vitamin vivid vocal voice volcano volume volunteer vote voyage
wafer waffle wage wagon waist wait waiter wake walk wall wallet walnut walrus waltz wander want
wardrobe warehouse warm warmth warning wash washer watch water waterfall wave wax way weak wealth
wear weather weave web website wedding wednesday week weekend weekly weigh weight welcome well
west wet whale wharf wheat wheel when where which while whisper whistle whole why wide width wife
wild will willow win wind windmill window windy wing winner winter wire wisdom wise wish with
within without wolf wonder wonderful wood wooden woodland wool word work worker workshop world
worm worth wrap wreath wrench wrinkle wrist write writer written yacht yard yarn yawn year yeast
yell yes yesterday yet yogurt yolk young your youth zebra zero zigzag zipper zone zoo zucchini
"""
WORDS = tuple(_ALL.split())

# Whoever reads these has learned letters, not words: one word in twelve, 200 in all.
HELD_OUT_WORDS = frozenset(WORDS[5::12])
TRAINED_WORDS = tuple(word for word in WORDS if word not in HELD_OUT_WORDS)

# --- made up --------------------------------------------------------------------------------------

_BEGINNINGS = """
b bl br c ch cl cr d dr f fl fr g gl gr h j k kn l m n p ph pl pr qu r s sc sh sk sl sm sn sp st str
sw t th tr tw v w wh wr y z
"""
_MIDDLES = "a a a e e e i i i o o o u u ai au ea ee ie oa oo ou ue y"
_ENDS = """
b ck d f ft g k l ld ll lk lm lp lt m mp n nd ng nk nt p pt r rd rk rl rm rn rp rt s sh sk sp ss st
t th tch w x
"""
_SYLLABLE = (
    (*_BEGINNINGS.split(), *[""] * 4),
    tuple(_MIDDLES.split()),
    (*_ENDS.split(), *[""] * 12),
)
_SHORTEST, _LONGEST = 3, 10


def made_up_word(rng: random.Random) -> str:
    """Return a word of one to three syllables that nobody can know, only spell; in small letters.

    Whoever knows all words of a picture by heart need not look at their letters.
    """
    while True:
        syllables = rng.choices((1, 2, 3), weights=(3, 5, 2))[0]
        word = "".join(rng.choice(part) for _ in range(syllables) for part in _SYLLABLE)
        if _SHORTEST <= len(word) <= _LONGEST and word not in HELD_OUT_WORDS:
            return word
