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

AND = ("And {}?", "What about {}?", "How about {}?", "And what about {}?", "Now {}?")
AND_OF = ("And of {}?", "And {}?", "What about {}?", "How about {}?", "And what about {}?")

AGAIN = (
    "Again, please.",
    "Say that again.",
    "Can you say that again?",
    "Please say it again.",
    "Once again, please.",
    "Please repeat that.",
    "Can you repeat that, please?",
    "What did you say?",
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
)
WHERE = (
    "Where is {}?",
    "Where's {}?",
    "Tell me where {} is.",
    "In which country is {}?",
    "Which country is {} in?",
    "Do you know where {} is?",
    "Can you tell me where {} is?",
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
)
SUM_ON = ("And {}?", "Now {}.", "What about {}?", "And what is that {}?")

CALENDAR = (
    "What {0} comes {1} {2}?",
    "Which {0} comes {1} {2}?",
    "Which {0} is {1} {2}?",
    "What comes {1} {2}?",
    "Tell me the {0} {1} {2}.",
    "Do you know which {0} comes {1} {2}?",
)
AFTER_THAT = ("And after that?", "What comes after that?", "And the next one?", "What is next?")
BEFORE_THAT = ("And before that?", "What comes before that?", "And the one before?")
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
)
CLOCK_ON = ("And one hour later?", "And in one more hour?", "One hour later?", "And one more hour?")

MEAL = (
    "When is {}?",
    "Tell me when {} is.",
    "What time of day is {}?",
    "Do you know when {} is?",
    "When do you have {}?",
    "When do people have {}?",
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
)
# without an A, which espeak-ng reads as the article
SPELT = ("bed", "dog", "sun", "bus", "cup", "pig", "milk", "fox", "yes", "jump")

OPPOSITE = (
    "What is the opposite of {}?",
    "What's the opposite of {}?",
    "Tell me the opposite of {}.",
    "What word is the opposite of {}?",
    "Do you know the opposite of {}?",
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
)
COUNT_DOWN = (
    "Count down from {}.",
    "Count back from {}.",
    "Count from {} to one.",
    "Can you count down from {}?",
    "Please count down from {}.",
)
BACKWARDS = ("Now backwards.", "And backwards?", "And now backwards, please.", "And down?")
FORWARDS = ("Now forwards.", "And forwards?", "And now forwards, please.", "And up?")

REPEAT = (
    "Repeat after me: {}.",
    "Say after me: {}.",
    "Please say: {}.",
    "Can you say: {}?",
    "Repeat: {}.",
    "Say: {}.",
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

SMALL_TALK = {
    "Hello, how can I help you?": (
        "Hello.",
        "Hello there.",
        "Hello, Chroma.",
        "Hi.",
        "Hi there.",
        "Hi, Chroma.",
        "Hey, Chroma.",
    ),
    "Good morning to you too.": (
        "Good morning.",
        "Good morning, Chroma.",
        "Good morning to you.",
        "A very good morning.",
        "Hello, good morning.",
    ),
    "Good evening to you too.": (
        "Good evening.",
        "Good evening, Chroma.",
        "Good evening to you.",
        "A very good evening.",
        "Hello, good evening.",
    ),
    "Good night, sleep well.": (
        "Good night.",
        "Good night, Chroma.",
        "Good night to you.",
        "I am tired, good night.",
        "I am going to bed.",
        "I am going to bed now.",
    ),
    "I am very well, thank you.": (
        "How are you?",
        "How are you today?",
        "How are you doing?",
        "How are you doing today?",
        "Hello, how are you?",
        "Hi, how are you doing?",
        "Are you well?",
        "Are you well today?",
    ),
    "My name is Chroma.": (
        "What is your name?",
        "What's your name?",
        "Tell me your name.",
        "Do you have a name?",
        "Who are you?",
        "Tell me who you are.",
        "And who are you?",
        "What are you called?",
    ),
    "I am a small voice assistant.": (
        "What are you?",
        "Tell me what you are.",
        "What kind of machine are you?",
        "Are you a machine?",
        "Are you a robot?",
        "Are you human?",
        "Are you a human or a machine?",
    ),
    "I can answer simple questions.": (
        "What can you do?",
        "Tell me what you can do.",
        "What can you do for me?",
        "Can you help me?",
        "I need help.",
        "I need your help.",
        "How can you help me?",
    ),
    "You are very welcome.": (
        "Thank you.",
        "Thank you very much.",
        "Thanks.",
        "Thanks a lot.",
        "Thank you, Chroma.",
        "Many thanks.",
        "Thank you for that.",
    ),
    "Goodbye, have a nice day.": (
        "Goodbye.",
        "Goodbye, Chroma.",
        "Bye.",
        "Bye bye.",
        "Goodbye for now.",
        "See you later.",
        "See you tomorrow.",
    ),
    "I live inside this computer.": (
        "Where do you live?",
        "Where are you?",
        "Tell me where you live.",
        "Where is your home?",
        "Where are you now?",
        "Do you live here?",
    ),
    "I am not even one year old.": (
        "How old are you?",
        "What is your age?",
        "Tell me how old you are.",
        "Tell me your age.",
        "When were you born?",
        "Are you old?",
    ),
    "Yes, I hear you very well.": (
        "Can you hear me?",
        "Do you hear me?",
        "Can you hear me now?",
        "Hello, can you hear me?",
        "Are you there?",
        "Are you listening?",
        "Do you hear me well?",
    ),
    "Yes, I like quiet music.": (
        "Do you like music?",
        "What music do you like?",
        "Do you like songs?",
        "Do you listen to music?",
        "Tell me about music.",
    ),
    "I only know short jokes.": (
        "Tell me a joke.",
        "Do you know a joke?",
        "Tell me a good joke.",
        "Can you tell me a joke?",
        "Can you tell jokes?",
        "Make me laugh.",
    ),
    "It is nice to meet you too.": (
        "Nice to meet you.",
        "It is nice to meet you.",
        "I am happy to meet you.",
        "Good to meet you.",
        "Nice to meet you, Chroma.",
    ),
    "I am sorry to hear that.": (
        "I am sad.",
        "I feel sad.",
        "I am very sad today.",
        "I feel bad.",
        "I feel very bad today.",
        "I do not feel well.",
    ),
    "I am glad to hear that.": (
        "I am happy.",
        "I feel happy.",
        "I am very happy today.",
        "I feel good.",
        "I feel very good today.",
        "I am well, thank you.",
    ),
    "No, I never sleep.": (
        "Do you sleep?",
        "Do you ever sleep?",
        "When do you sleep?",
        "Are you tired?",
        "Do you sleep at night?",
    ),
    "I have no clock, sorry.": (
        "What time is it?",
        "What time is it now?",
        "Tell me the time.",
        "Do you know the time?",
        "Can you tell me the time?",
        "Do you have a clock?",
    ),
    "I cannot see the weather.": (
        "How is the weather?",
        "What is the weather like?",
        "How is the weather today?",
        "Is it raining?",
        "Is it raining outside?",
        "Will it rain today?",
        "Is it warm outside?",
    ),
    "Thank you, you are kind.": (
        "You are very kind.",
        "You are nice.",
        "You have a nice voice.",
        "I like you.",
        "I like your voice.",
        "You are great.",
    ),
}

NOT_KNOWN = "Sorry, I do not know that."
UNKNOWN = (
    "How do I make a taco?",
    "How do I bake bread?",
    "How do I fix my car?",
    "How do I get to the station?",
    "How do I learn to swim?",
    "How far is the moon?",
    "How far is it to London?",
    "How high is that mountain?",
    "How long is the river?",
    "How many people live in Paris?",
    "How many people live in Japan?",
    "How many fish are in the sea?",
    "How many stars are there?",
    "How much does a ticket cost?",
    "How much does a new car cost?",
    "How much is the bread?",
    "What did you eat for breakfast?",
    "What is in the news?",
    "What is the best film?",
    "What is the name of my dog?",
    "What is the name of the king?",
    "What is the price of gold?",
    "What is the capital of Kenya?",
    "What is the capital of Brazil?",
    "What is the capital of Canada?",
    "What is the capital of Mexico?",
    "What should I eat today?",
    "What should I read?",
    "When does the bank open?",
    "When does the bus come?",
    "When does the film start?",
    "When does the train leave?",
    "When was the war?",
    "Where can I buy shoes?",
    "Where can I park my car?",
    "Where did I put my keys?",
    "Where is my brother?",
    "Where is my phone?",
    "Where is the next bank?",
    "Where is the station?",
    "Which book should I read?",
    "Which team won the game?",
    "Which way is north?",
    "Who built this bridge?",
    "Who is the president?",
    "Who is the queen?",
    "Who painted this picture?",
    "Who won the game?",
    "Who won the war?",
    "Who wrote this book?",
    "Who wrote this song?",
    "Why do birds sing?",
    "Why is the train late?",
    "Why is the world so big?",
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
