"""Opening and follow-up messages of sampled chats; calibration and held-out share no template and no topic."""

from __future__ import annotations

import random

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

OTHER_SYSTEMS = [
    "You are a concise assistant. Answer in as few words as possible.",
    "You are a friendly teacher who explains things with everyday examples.",
    "You are an expert programmer. Give working code and explain it briefly.",
    "You are a creative writer with a vivid imagination.",
    "You are a careful assistant who says so when something is uncertain.",
    "You are a travel guide with a sense of humour.",
]

CALIBRATION_TOPICS = """\
photosynthesis; the French Revolution; black holes; how vaccines work; inflation; the water cycle
chess openings; baking bread; learning the guitar; running a marathon; the Roman Empire; climate change
plate tectonics; binary search; recursion; hash tables; sorting a list in Python; reading a CSV file
regular expressions; SQL joins; linked lists; unit testing; Git branches; HTML forms; a REST API
object-oriented programming; prime numbers; the Pythagorean theorem; fractions; percentages
probability with dice; compound interest; quadratic equations; averages; saving money; job interviews
writing a resume; time management; public speaking; moving to a new city; sleeping better
a healthy breakfast; stretching; meditation; drinking more water; a vegetarian diet; back pain
stress at work; headaches; Shakespeare; the Mona Lisa; jazz music; haiku; science fiction
Greek mythology; fairy tales; the printing press; dolphins; honey bees; elephants; house cats; penguins
sharks; the Amazon rainforest; coral reefs; volcanoes; hurricanes; Japan; Brazil; Paris; Egypt
New York City; Kenya; Iceland; India; the Sahara; Mount Everest; the Pacific Ocean; electric cars
solar panels; the internet; smartphones; artificial intelligence; robots; satellites; batteries; bicycles
gravity; atoms; DNA; the immune system; the human heart; the brain; evolution; dinosaurs
the periodic table; electricity; democracy; the United Nations; human rights; supply and demand; taxes
the stock market; starting a small business; gardening; a birthday party; a wedding toast; a camping trip
a dinner for friends; adopting a dog; buying a used car; a lost child; a dragon who is afraid of fire
two old friends; a lighthouse keeper; a talking tree; a time traveller; friendship; courage; loneliness
hope; autumn; the ocean; a rainy day; childhood memories; forgiveness; curiosity; football; basketball
swimming; yoga; tea; coffee; chocolate; pizza; pasta; cheese; rice; soup; apples; tomatoes; World War II
the Cold War; the Moon landing; ancient China; the Vikings; the Renaissance; the Industrial Revolution
email etiquette; negotiating a salary; working from home; a difficult coworker; learning Spanish
reading more books"""

HELD_OUT_TOPICS = """\
the solar eclipse; the Great Wall of China; how a refrigerator works; earthquakes; the Silk Road
glaciers; a stack and a queue; string reversal in Python; matrix multiplication; geometry of circles
percent discounts; chess endgames; planning a budget; writing a cover letter; remembering names
a balanced lunch; learning to swim; caring for houseplants; Mozart; impressionist painting; limericks
detective stories; Norse gods; the invention of paper; owls; octopuses; wolves; Canada; Rome; South Korea
the Nile; wind turbines; 3D printing; computer viruses; magnets; cells; the human eye; fossils
the European Union; free speech; interest rates; a neighbourhood garden; a school play; a train journey
adopting a cat; a shy robot; a forgotten letter; a village on a cloud; patience; winter; the stars
tennis; green tea; pancakes; potatoes; the American Civil War; the Aztecs; setting goals
apologising to a friend; remote teams; learning to draw"""

CALIBRATION_TEMPLATES = """Explain {} in simple terms.
What is the most important thing to know about {}?
Can you tell me about {}?
Give me five interesting facts about {}.
Write a short story about {}.
Write a poem about {}.
I want to learn more about {}. Where should I start?
What are the advantages and disadvantages of {}?
Write a short paragraph about {} for a school newspaper.
Explain {} to a ten year old.
How does {} affect everyday life?
Write a list of questions someone might ask about {}, with answers.
Summarize what you know about {} in three sentences.
What are common mistakes people make with {}?
Give me step-by-step advice on {}.
Compare {} and {}.
Write a Python function that has something to do with {} and explain it.
Write an email to a colleague about {}.
Make a plan for a one-week introduction to {}.
Why do people care about {}?
Write a dialogue between two people talking about {}.
hi! what do u know about {}?
Is it true that everybody likes {}? Why or why not?
Solve a small exercise about {} and show your work.
Give me a quiz question about {} and its answer.
Who are the most famous people connected with {}?
Describe {} as if you were there.
What is the history of {}?
How would you explain the difference between {} and {}?
Write a product description that mentions {}.
I'm feeling unsure about {}. Any advice?
Suggest a title and an outline for an essay on {}.
Translate a sentence about {} into French and Spanish.
Write a bash or SQL example related to {}.
List ten words related to {} and define each one.
Tell me a joke about {}."""

HELD_OUT_TEMPLATES = """What should everyone understand about {}?
Please give a beginner's introduction to {}.
Create a short scene in which {} plays a role.
How did {} come about?
What are three surprising things about {}?
Help me prepare a two-minute talk on {}.
Could you describe {} in detail?
Write some code that illustrates {} and comment it.
What would change in the world without {}?
Draft a message to my friend about {}.
What do beginners get wrong about {}?
Write a song about {}.
Can you recommend how to get better at {}?
Which is more important, {} or {}, and why?
Work through an example that involves {}."""

CALIBRATION_FOLLOW_UPS = """Can you give me an example?
Can you explain that more simply?
Thanks! What else should I know?
Why is that?
Please make it shorter.
Now rewrite it in a more formal tone.
Tell me more about the second point.
Are you sure about that?
What would an expert say?
How could I use this in my own life?
Turn that into a bullet list.
Interesting. How did that start?
What are the alternatives?
Can you write that as a table?
I don't understand. Could you try again?
What is the difference between that and what most people think?
Great, now write a sequel.
ok and how long does that take?
Give me a summary of our conversation.
Can you ask me a question to check that I understood?"""

HELD_OUT_FOLLOW_UPS = """Could you go a bit deeper?
Say that again in other words, please.
What is the main risk there?
Show me how that works in practice.
Which part matters most?
Make it funnier.
And what happened after that?
What should I read next?"""


def _items(text: str) -> list[str]:
    return [item.strip() for line in text.splitlines() for item in line.split(";") if item.strip()]


class PromptSource:
    """Draws conversation openings and follow-ups; the same seed gives the same ones."""

    def __init__(self, held_out: bool, seed: int) -> None:
        self._random = random.Random(seed)
        self._topics = _items(HELD_OUT_TOPICS if held_out else CALIBRATION_TOPICS)
        self._templates = (HELD_OUT_TEMPLATES if held_out else CALIBRATION_TEMPLATES).splitlines()
        self._follow_ups = (HELD_OUT_FOLLOW_UPS if held_out else CALIBRATION_FOLLOW_UPS).splitlines()

    def system(self) -> str:
        """The default system prompt four times out of five."""
        return SYSTEM if self._random.random() < 0.8 else self._random.choice(OTHER_SYSTEMS)

    def opening(self) -> str | None:
        """A first message, or None where the model is to write the user's message itself."""
        if self._random.random() < 0.2:
            return None
        template = self._random.choice(self._templates)
        return template.format(*self._random.sample(self._topics, 2))

    def follow_up(self) -> str | None:
        """A later message, or None where the model is to write it."""
        return None if self._random.random() < 0.4 else self._random.choice(self._follow_ups)

    def temperature(self) -> float:
        return self._random.uniform(0.7, 1.0)
