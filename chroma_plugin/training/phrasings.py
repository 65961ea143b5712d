"""The words of the small world in `domain`: phrasings, and the things that fill them. Knows nothing
of dialogues.

Words are few and common, so that a small tokenizer spells them and espeak-ng says them right.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve"
)  # NUMBERS[n] is n

OPENINGS = ("Okay", "So", "Now", "Chroma")

AND = (
    "And {}?",
    "What about {}?",
    "How about {}?",
    "And what about {}?",
    "Now {}?",
    "And how about {}?",
    "And now {}?",
    "So what about {}?",
)
AND_OF = (
    "And of {}?",
    "And {}?",
    "What about {}?",
    "How about {}?",
    "And what about {}?",
    "And how about {}?",
    "And now of {}?",
    "So what about {}?",
)

AGAIN = (
    "Again, please.",
    "Say that again.",
    "Can you say that again?",
    "Please say it again.",
    "Once again, please.",
    "Please repeat that.",
    "Can you repeat that, please?",
    "What did you say?",
    "One more time, please.",
    "Can you say it again?",
    "Tell me that again.",
    "Say it once more.",
    "Repeat that, please.",
    "Sorry, what did you say?",
    "Please say that once more.",
)
AGAIN_HELD_OUT = ("Can you please say that again?", "Please repeat that again.")

CAPITAL = (
    "What is the capital of {}?",
    "What's the capital of {}?",
    "Tell me the capital of {}.",
    "Name the capital of {}.",
    "Which city is the capital of {}?",
    "Do you know the capital of {}?",
    "Can you tell me the capital of {}?",
    "The capital of {}?",
    "What city is the capital of {}?",
    "I want to know the capital of {}.",
    "Can you name the capital of {}?",
    "What is {}'s capital?",
)
WHERE = (
    "Where is {}?",
    "Where's {}?",
    "Tell me where {} is.",
    "In which country is {}?",
    "Which country is {} in?",
    "Do you know where {} is?",
    "Can you tell me where {} is?",
    "What country is {} in?",
    "I want to know where {} is.",
    "Where do I find {}?",
)
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Norway": "Oslo",
    "Greece": "Athens",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Austria": "Vienna",
    "Poland": "Warsaw",
}

SUM = (
    "What is {}?",
    "What's {}?",
    "How much is {}?",
    "Tell me what {} is.",
    "How much do I get for {}?",
    "What do you get for {}?",
    "Can you tell me what {} is?",
    "How many is {}?",
    "Do you know what {} is?",
    "What does {} make?",
    "I want to know what {} is.",
)
SUM_ON = (
    "And {}?",
    "Now {}.",
    "What about {}?",
    "And what is that {}?",
    "What is that {}?",
    "And now {}?",
    "Then {}?",
    "And that {}?",
)

CALENDAR = (
    "What {0} comes {1} {2}?",
    "Which {0} comes {1} {2}?",
    "Which {0} is {1} {2}?",
    "What comes {1} {2}?",
    "Tell me the {0} {1} {2}.",
    "Do you know which {0} comes {1} {2}?",
    "Which one comes {1} {2}?",
    "What is the {0} {1} {2}?",
    "Can you tell me the {0} {1} {2}?",
    "And what comes {1} {2}?",
)
AFTER_THAT = (
    "And after that?",
    "What comes after that?",
    "And the next one?",
    "What is next?",
    "And what comes after that?",
    "Which one is next?",
    "And then?",
    "What comes next?",
)
BEFORE_THAT = (
    "And before that?",
    "What comes before that?",
    "And the one before?",
    "And what comes before that?",
    "Which one is before that?",
    "What was before that?",
    "And the one before that?",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

CLOCK = (
    "It is {} o'clock. What time is it in one hour?",
    "It is {} o'clock. What time will it be in one hour?",
    "It's {} o'clock now. And in one hour?",
    "What time is it one hour after {} o'clock?",
    "What is one hour after {} o'clock?",
    "What time comes one hour after {}?",
    "It is {} o'clock. What time is it one hour later?",
    "It is {} o'clock now. What time is it in one hour?",
    "Tell me the time one hour after {} o'clock.",
    "What time will it be one hour after {}?",
)
CLOCK_ON = (
    "And one hour later?",
    "And in one more hour?",
    "One hour later?",
    "And one more hour?",
    "And one hour after that?",
    "What time is it one hour later?",
    "And in another hour?",
)

MEAL = (
    "When is {}?",
    "Tell me when {} is.",
    "What time of day is {}?",
    "Do you know when {} is?",
    "When do you have {}?",
    "When do people have {}?",
    "Can you tell me when {} is?",
    "When is it time for {}?",
    "What is the time of day for {}?",
)
MEALS = (
    ("breakfast", "in the morning"),
    ("lunch", "at noon"),
    ("tea", "in the afternoon"),
    ("dinner", "in the evening"),
    ("midnight", "in the middle of the night"),
)

COLOUR = (
    "What colour is {}?",
    "Which colour is {}?",
    "What is the colour of {}?",
    "Tell me the colour of {}.",
    "What colour does {} have?",
    "Do you know the colour of {}?",
    "Can you tell me the colour of {}?",
    "Tell me what colour {} is.",
    "Which colour does {} have?",
    "Do you know what colour {} is?",
)
COLOURS = {
    "the sky": "blue",
    "the sea": "blue",
    "grass": "green",
    "snow": "white",
    "milk": "white",
    "coal": "black",
    "a banana": "yellow",
    "the sun": "yellow",
    "blood": "red",
    "chocolate": "brown",
}

SPELLING = (
    "How do you spell {}?",
    "Spell {}.",
    "How is {} spelled?",
    "Spell the word {}.",
    "Can you spell {}?",
    "How do I spell the word {}?",
    "How do you spell the word {}?",
    "How do I spell {}?",
    "Please spell {}.",
    "Tell me how to spell {}.",
    "How is the word {} spelled?",
)
# without an A, which espeak-ng reads as the article
SPELT = ("bed", "dog", "sun", "bus", "cup", "pig", "milk", "fox", "yes", "jump")

OPPOSITE = (
    "What is the opposite of {}?",
    "What's the opposite of {}?",
    "Tell me the opposite of {}.",
    "What word is the opposite of {}?",
    "Do you know the opposite of {}?",
    "Can you tell me the opposite of {}?",
    "Which word is the opposite of {}?",
    "Name the opposite of {}.",
    "The opposite of {}?",
)
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "good": "bad",
    "new": "old",
    "fast": "slow",
    "happy": "sad",
    "loud": "quiet",
    "open": "closed",
}

COUNT = (
    "Count to {}.",
    "Please count to {}.",
    "Can you count to {}?",
    "Count from one to {}.",
    "Count up to {}.",
    "Please count up to {}.",
    "Can you count up to {}?",
    "Please count from one to {}.",
    "I want you to count to {}.",
)
COUNT_DOWN = (
    "Count down from {}.",
    "Count back from {}.",
    "Count from {} to one.",
    "Can you count down from {}?",
    "Please count down from {}.",
    "Please count back from {}.",
    "Can you count back from {}?",
    "Please count from {} to one.",
    "I want you to count down from {}.",
)
BACKWARDS = (
    "Now backwards.",
    "And backwards?",
    "And now backwards, please.",
    "And down?",
    "Now count backwards.",
    "Now down again.",
    "Can you do it backwards?",
    "Backwards, please.",
)
FORWARDS = (
    "Now forwards.",
    "And forwards?",
    "And now forwards, please.",
    "And up?",
    "Now count forwards.",
    "Now up again.",
    "Can you do it forwards?",
    "Forwards, please.",
)

REPEAT = (
    "Repeat after me: {}.",
    "Say after me: {}.",
    "Please say: {}.",
    "Can you say: {}?",
    "Repeat: {}.",
    "Say: {}.",
    "Now say: {}.",
    "Please repeat: {}.",
    "Can you repeat: {}?",
    "Please say after me: {}.",
    "I want you to say: {}.",
)
REPEATED = (
    "a big dog",
    "a small dog",
    "a big red house",
    "a small red house",
    "the house is old",
    "the house is new",
    "the sun is shining",
    "the moon is shining",
    "the cat is sleeping",
    "the dog is sleeping",
    "good morning, London",
    "good evening, London",
    "I like green tea",
    "I like black tea",
    "we are all friends",
    "we are going home",
)

# -- sentences for reference clips ---------------------------------------------------------------

THE = ("The", "A", "My", "Your", "Our", "This", "That")
ADJECTIVES = _words(
    "quick brown lazy small young proud tall quiet warm cold white yellow happy hungry strong "
    "gentle busy clever famous friendly"
)
BEINGS = _words(
    "fox dog cat bird horse girl boy woman man teacher doctor farmer sailor king queen child "
    "painter baker driver neighbour"
)
DONE_TO = _words(
    "sees finds takes paints carries opens washes brings forgets watches follows draws"
)
THINGS = _words(
    "ball book letter basket ladder picture bottle chair lamp key blanket hammer violin cheese "
    "plum lemon pumpkin glove towel suitcase"
)
DONE = _words("sleeps jumps sings waits reads laughs works dances rests walks dreams shouts")
PLACED = ("near", "behind", "in front of", "beside", "under", "over")
PLACES = _words(
    "river bridge garden forest window village school church harbour mountain kitchen tower field "
    "market station island castle beach"
)
WHEN = (
    "in the warm afternoon sun",
    "until the next morning",
    "all through the winter",
    "for a very long time",
    "just before breakfast",
    "while the others are away",
    "with a good friend",
    "as usual",
)
